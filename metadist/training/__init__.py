"""The one training loop, the seams that it talks to, the in-process runtime, and evaluation."""
