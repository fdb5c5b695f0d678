"""The HF Trainer with our losses, and what it starts from and leaves."""
