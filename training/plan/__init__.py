"""A recipe made from the data: what they are, what the machine can do, and a reason for each number."""
