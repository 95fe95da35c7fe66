//! /cpu: sessions as files, and commands run in the caller's namespace.
