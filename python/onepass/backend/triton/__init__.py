"""The Triton backend. Triton itself is imported when the backend is first used."""
