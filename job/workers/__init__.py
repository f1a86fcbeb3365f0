"""Several processes at one run: who takes what, how they meet, and what they tell each other. No tensors."""
