//! The namespace: mount, bind and union as one tree that prints as the text that rebuilds it.
//!
//! A [`Namespace`] is a table from paths to ordered lists of trees, and itself a tree. Whoever shows it (a FUSE mount,
//! a server) never learns where one tree ends and the next begins. [`text`] reads and prints namespace(6) files,
//! [`Build`] makes a namespace from one, and [`Grid`] is the directory at /n whose entries are dialled when used.
//!
//! The rules are Plan 9's (bind(2), namespace(6)), with one addition: a mount point need not exist beneath. Where it
//! does not, it and the directories on the way to it are there all the same, read-only.

mod absent;
mod build;
mod grid;
mod lazy;
mod lines;
mod list;
mod namespace;
mod path;
mod point;
mod table;
mod under;

pub mod text;

pub use build::{Build, Dialer, Failed, MAX_INCLUDED};
pub use grid::{Grid, Names};
pub use lazy::Lazy;
pub use namespace::{Error, Namespace, Shown};
pub use path::clean;
pub use text::Flags;
pub use under::identify_by;
