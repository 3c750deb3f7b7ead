"""The core of sweeps, which launchers share: what runs there are, which of them is whose, and what became of them."""
