//! Trees of real files, used in place: no wire, no mount.
//!
//! `disk` is the plain directory, `races` those who try to get out of it.

mod common;
mod disk;
