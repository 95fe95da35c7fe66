//! What programs expect of a file system, asked of a mount of a tree: the cases of `tests/v9fs/guest.c`, which the
//! Linux kernel's own 9P client is asked, too (tests/tests/v9fs.rs).

use std::path::Path;
use std::process::{Command, Stdio};

use p9::NodeRef;
use tokio::runtime::Runtime;

use crate::machine::Done;

/// Mounts the tree whose root `root` makes on the runtime, below `dir`, and runs `cases` in it; with `blocks` they also
/// ask how many blocks a file has.
pub fn find(dir: &Path, root: impl FnOnce(&Runtime) -> NodeRef, blocks: bool, cases: &[&str]) {
    let (at, program) = (dir.join("mnt"), dir.join("guest"));
    std::fs::create_dir(&at).unwrap();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/v9fs/guest.c");
    Command::new("gcc").arg("-o").arg(&program).arg(source).succeeds();
    let runtime = Runtime::new().unwrap();
    let root = root(&runtime);
    let shown = mount::mount(root, &at, mount::Options::default(), runtime.handle().clone()).unwrap();
    // The cases go by whether the third path is called as the first.
    let third = if blocks { at.clone() } else { at.join(".") };
    for case in cases {
        Command::new(&program).arg(case).args([&at, &at, &third]).stdin(Stdio::null()).succeeds();
    }
    drop(shown);
    runtime.shutdown_background();
}
