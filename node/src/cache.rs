//! What this user's mounts and commands keep on disk of what they read.
//!
//! It is in the home, since that is nobody else's and is never shown to a node: what is kept is of other nodes' files.
//! Opened once by each process that mounts. Where that cannot be the files are fetched each time, and that is all.

use crate::home::Home;

/// Opens what is kept, up to `mib` MiB of it; nothing is with 0. To be called before there is a namespace.
pub fn open(home: &Home, mib: u64) -> Option<mount::DiskCache> {
    if mib == 0 {
        return None;
    }
    let dir = home.path().join("cache");
    let opened = home.secret("files").map_err(|err| err.to_string()).and_then(|key| {
        let mut half = [0; 16];
        half.copy_from_slice(&key[..16]);
        ns::identify_by(half);
        let options = mount::DiskOptions::new(dir.clone(), mib << 20, key);
        mount::DiskCache::open(&options).map_err(|err| err.to_string())
    });
    opened.inspect_err(|err| tracing::warn!("open the cache: {}: {err}; nothing is kept", dir.display())).ok()
}
