"""The copy task: recall ten symbols after a long gap."""
