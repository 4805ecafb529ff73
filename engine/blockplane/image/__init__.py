"""Storage images: sets of blocks chosen by an expression, their order, and the gather from all disks at once."""
