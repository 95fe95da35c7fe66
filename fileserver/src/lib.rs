//! Real things as trees: a disk directory, and exports with their rules.
