//! Real things as trees: a disk directory, and exports with their rules.
//!
//! [`Disk`] is a directory of this machine. [`Ruled`] is any tree with rules about who sees and changes what by path;
//! [`caller::rules`] are those that protect a caller from the node that runs its command. [`exports`] names the
//! directories that a node shows to its peers.
//!
//! Nothing here listens or reads the environment: the node hands in paths, keys and limits, and serves the trees.

pub mod caller;
pub mod disk;
pub mod events;
pub mod exports;
pub mod leases;

mod empty;
mod ruled;
mod rules;

pub use disk::{Disk, DiskOptions, Error};
pub use exports::{Export, Exports};
pub use leases::{LeaseOptions, Leases};
pub use ruled::Ruled;
pub use rules::{Access, Rules};
