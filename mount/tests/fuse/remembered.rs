//! A directory that was listed is listed again without asking for what it holds, until somebody changes it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use super::*;

const COUNT: usize = 300;

/// A folder with a directory of files whose names are long, so that it takes several reads to list them; and two mounts
/// of it.
fn two() -> (TempDir, Client, Shown, Shown) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("dir/within")).unwrap();
    (0..COUNT).for_each(|n| fs::write(folder.path().join("dir").join(format!("{n:0200}")), "old").unwrap());
    let tree: TreeRef = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    let (client, shown) = Shown::counted_with(tree.clone(), Options::default());
    (folder, client, shown, Shown::far(tree))
}

/// The names in `dir`, each with its mode and, if it is a file, its length; but for what goes meanwhile.
fn listed(dir: &Path) -> BTreeMap<String, (u32, u64)> {
    let look = |entry: fs::DirEntry| {
        let meta = entry.metadata().ok()?;
        let length = if meta.is_dir() { 0 } else { meta.len() };
        Some((entry.file_name().into_string().unwrap(), (meta.mode(), length)))
    };
    fs::read_dir(dir).unwrap().filter_map(|entry| look(entry.unwrap())).collect()
}

/// Lists `dir` until that asks for nothing but whether its name still leads to it, and the directory in it.
fn remember(client: &Client, dir: &Path) -> BTreeMap<String, (u32, u64)> {
    let mut last = BTreeMap::new();
    until("it is remembered", || {
        let before = client.counts().received;
        last = listed(dir);
        client.counts().received - before < 4096
    });
    last
}

#[test]
fn a_directory_that_is_listed_again_is_not_asked_for_what_it_holds() {
    let (folder, client, shown, _other) = two();
    let before = client.counts().received;
    assert_eq!(listed(&shown.path("dir")).len(), COUNT + 1);
    assert!(client.counts().received - before > 40 << 10, "at first it is");
    assert_eq!(remember(&client, &shown.path("dir")), listed(&folder.path().join("dir")));
}

#[test]
fn what_anybody_changes_is_in_the_next_listing() {
    let (folder, client, shown, other) = two();
    let (ours, theirs, local) = (shown.path("dir"), other.path("dir"), folder.path().join("dir"));
    for (dir, first) in [(&ours, 0), (&theirs, 100)] {
        let name = |n: usize| dir.join(format!("{:0200}", first + n));
        let changes: [&dyn Fn(); 5] = [
            &|| fs::write(name(COUNT), "new").unwrap(),
            &|| fs::remove_file(name(0)).unwrap(),
            &|| fs::rename(name(1), name(2 + COUNT)).unwrap(),
            &|| fs::set_permissions(name(3), fs::Permissions::from_mode(0o600)).unwrap(),
            &|| fs::write(name(4), "much longer").unwrap(),
        ];
        for (n, change) in changes.iter().enumerate() {
            // Where others change much no lease is given for a while.
            let before = if *dir == ours || n < 2 { remember(&client, &ours) } else { listed(&ours) };
            assert_eq!(before, listed(&local));
            change();
            assert_eq!(listed(&ours), listed(&local));
        }
    }
}

#[test]
fn what_a_local_process_of_the_server_changes_is_in_a_later_listing() {
    let (folder, client, shown, _other) = two();
    let (ours, local) = (shown.path("dir"), folder.path().join("dir"));
    for change in ["rm *00000", "mv *00001 moved"] {
        assert_eq!(remember(&client, &ours), listed(&local));
        let done = Command::new("sh").args(["-c", change]).current_dir(&local).status().unwrap();
        assert!(done.success());
        until("it is seen", || listed(&ours) == listed(&local));
    }
}

#[test]
fn what_it_is_called_now_is_what_counts() {
    let (_folder, client, shown, other) = two();
    remember(&client, &shown.path("dir"));
    fs::rename(other.path("dir"), other.path("moved")).unwrap();
    fs::create_dir(other.path("dir")).unwrap();
    until("the new one is seen", || listed(&shown.path("dir")).is_empty());
    assert_eq!(listed(&shown.path("moved")).len(), COUNT + 1);
}

#[test]
fn a_directory_in_it_is_told_as_it_is() {
    let (_folder, client, shown, other) = two();
    remember(&client, &shown.path("dir"));
    fs::set_permissions(other.path("dir/within"), fs::Permissions::from_mode(0o700)).unwrap();
    until("its mode is seen", || listed(&shown.path("dir"))["within"].0 & 0o777 == 0o700);
}

/// Waits until `dir` was left alone for so long that what the kernel has listed of it is kept, and has it listed twice.
fn keep_in_kernel(client: &Client, dir: &Path) {
    until("it was left alone for a while", || {
        let meta = fs::metadata(dir).unwrap();
        let changed = meta.ctime().max(meta.mtime());
        std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() > changed.unsigned_abs() + 2
    });
    remember(client, dir);
    remember(client, dir);
}

#[test]
fn what_the_kernel_has_listed_is_old_once_anybody_changes_it_whatever_its_times_say() {
    let (folder, client, shown, other) = two();
    let (ours, theirs, local) = (shown.path("dir"), other.path("dir"), folder.path().join("dir"));
    for (dir, name) in [(&ours, "ours"), (&theirs, "theirs")] {
        keep_in_kernel(&client, &ours);
        let mtime = fs::metadata(dir).unwrap().modified().unwrap();
        fs::write(dir.join(name), name).unwrap();
        // As tar(1) does once it has made all that is in it.
        fs::File::open(dir).unwrap().set_times(fs::FileTimes::new().set_modified(mtime)).unwrap();
        assert_eq!(fs::metadata(&local).unwrap().modified().unwrap(), mtime);
        assert!(listed(&ours).contains_key(name), "{name}");
        assert_eq!(listed(&ours), listed(&local));
    }
}

#[test]
fn whoever_lists_an_open_directory_once_more_is_told_what_is_there_by_then() {
    let (_folder, client, shown, other) = two();
    let (ours, theirs) = (shown.path("dir"), other.path("dir"));
    keep_in_kernel(&client, &ours);
    let mut open = rustix::fs::Dir::new(fs::File::open(&ours).unwrap()).unwrap();
    let mut names = || {
        open.rewind();
        let names = open.by_ref().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    };
    let there = || listed(&theirs).into_keys().collect::<Vec<_>>();
    assert_eq!(names(), there());
    for (n, dir) in [&ours, &theirs, &ours, &theirs].into_iter().enumerate() {
        fs::write(dir.join(format!("new {n}")), "new").unwrap();
        fs::remove_file(dir.join(format!("{n:0200}"))).unwrap();
        fs::create_dir(dir.join(format!("within {n}"))).unwrap();
        assert_eq!(names(), there(), "{n}");
    }
}
