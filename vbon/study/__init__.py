"""``vbon study``: from a policy, a reward model and prompts to the answer, in one resumable command."""
