"""Compare the challenger with bicubic, the warm-up and the champion on held-out photographs, and decide."""
