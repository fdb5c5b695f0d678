"""The Hub: what it holds, one commit, a Space."""
