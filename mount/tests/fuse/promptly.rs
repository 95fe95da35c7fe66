//! How soon what a local process of the server changes is seen. The kernel keeps everything for a second: it is seen
//! before because the mount was told.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use super::*;

/// What is promised; of a machine that does other things, too, of half of the changes.
const PROMISED: Duration = Duration::from_millis(100);

#[test]
fn what_a_local_process_of_the_server_changes_is_seen_within_a_tenth_of_a_second() {
    let folder = tempfile::tempdir().unwrap();
    for n in 0..40 {
        fs::write(folder.path().join(format!("f{n}")), "text").unwrap();
    }
    let tree: TreeRef = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    let shown = Shown::far(tree);
    let mut times = Vec::new();
    for n in 0..30 {
        let (name, other) = (format!("f{n}"), format!("new{n}"));
        let path = shown.path(&name);
        // It is known, with all that is in there.
        assert!(fs::read_dir(&*shown).unwrap().count() >= 10);
        assert_eq!((fs::read_to_string(&path).unwrap(), path.metadata().unwrap().len()), ("text".into(), 4));
        assert!(!shown.path(&other).exists());
        let seen: (String, Box<dyn Fn() -> bool>) = match n % 5 {
            0 => (format!("chmod 600 {name}"), Box::new(|| path.metadata().unwrap().mode() & 0o777 == 0o600)),
            1 => (format!("printf more >>{name}"), Box::new(|| path.metadata().unwrap().len() == 8)),
            2 => (format!("printf other >{name}"), Box::new(|| fs::read_to_string(&path).unwrap() == "other")),
            3 => (format!("rm {name}"), Box::new(|| !path.exists())),
            _ => (format!("mv {name} {other}"), Box::new(|| shown.path(&other).exists() && !path.exists())),
        };
        let done = Command::new("sh").args(["-c", &seen.0]).current_dir(folder.path()).status().unwrap();
        assert!(done.success(), "{}", seen.0);
        let began = Instant::now();
        let mut looks = 0;
        until(&seen.0, || {
            looks += 1;
            (seen.1)()
        });
        times.push((began.elapsed(), looks, seen.0));
    }
    times.sort();
    let (middle, worst) = (&times[times.len() / 2], &times[times.len() - 1]);
    println!("half within {:?}; the last after {:?} and {} looks: {}", middle.0, worst.0, worst.1, worst.2);
    assert!(middle.0 < PROMISED, "{middle:?}");
    let made = folder.path().join("f0").metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(made, 0o600);
}
