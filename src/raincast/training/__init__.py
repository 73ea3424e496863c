"""The LightningModule, the optimiser with its schedule, and the callbacks."""
