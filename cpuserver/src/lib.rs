//! /cpu: sessions as files, and commands run in the caller's namespace.

pub mod launch;

mod ctl;
mod flow;
mod signals;
mod words;
