//! Any tree shown by FUSE.
