"""The pipeline on this machine: each step in a process or in a container."""
