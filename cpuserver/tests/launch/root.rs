//! This machine's files as a job's root: read-only, by the file server and FUSE, as a session without a caller has it.

use std::os::fd::OwnedFd;
use std::path::Path;

use fileserver::{Disk, DiskOptions};
use mount::{Mount, Options};
use p9::{Tree, Who};
use tokio::runtime::Handle;

/// Serves the root on `fuse` until the mount is dropped.
pub(crate) async fn serve(fuse: OwnedFd) -> Mount {
    let disk = Disk::open(Path::new("/"), DiskOptions::new([7; 32]).read_only(true)).unwrap();
    let root = disk.attach(&Who::owner(), b"/").await.unwrap();
    mount::serve(root, fuse, Options { read_only: true, ..Options::default() }, Handle::current()).unwrap()
}
