"""Tests of the CUDA backend on a GPU; target.py says where they run."""
