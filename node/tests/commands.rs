//! The commands that make and edit a home, driven as a user drives them: the built binary, its exit status, what it
//! prints, and what it leaves in the home.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f bob";
const KEY_PRINT: &str = "SHA256:ZkAslGjFiUHdGf/WUL8rQvkib4PTvQatUV0OUQSncCA";

/// A directory for one test, and the home in it.
struct Place {
    top: TempDir,
}

/// What a command did.
#[derive(Debug)]
struct Ran {
    status: i32,
    out: String,
    err: String,
}

impl Place {
    fn new() -> Self {
        Self { top: tempfile::tempdir().unwrap() }
    }

    /// With a home called `alpha` in it.
    fn made() -> Self {
        let place = Self::new();
        place.run(&["init", "--name", "alpha"]).succeeds();
        place
    }

    fn file(&self, name: &str) -> PathBuf {
        self.top.path().join("home").join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    fn chmod(&self, name: &str, mode: u32) {
        fs::set_permissions(self.file(name), Permissions::from_mode(mode)).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slashn"));
        command.env_clear().env("SLASHN_HOME", self.file("")).env("USER", "me").stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command().args(args).output().unwrap())
    }
}

impl Ran {
    fn of(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn succeeds(self) -> String {
        assert_eq!((self.status, self.err.as_str()), (0, ""), "{self:?}");
        self.out
    }

    /// Exit status 1, nothing on standard output, and one line on standard error that has all `parts`.
    #[track_caller]
    fn fails(self, parts: &[&str]) {
        assert_eq!((self.status, self.out.as_str()), (1, ""), "{self:?}");
        assert!(self.err.starts_with("slashn: ") && self.err.matches('\n').count() == 1, "{self:?}");
        for part in parts {
            assert!(self.err.contains(part), "{part} is not in {self:?}");
        }
    }
}

#[test]
fn a_home_is_made_once_and_making_it_again_changes_nothing() {
    let place = Place::new();
    let out = place.run(&["init", "--name", "alpha"]).succeeds();
    assert!(out.contains("made id_ed25519, node_ed25519, authorized_keys, known_nodes, grid.toml"), "{out}");
    let files = ["id_ed25519", "node_ed25519", "authorized_keys", "known_nodes", "grid.toml", "id_ed25519.pub"];
    let before: Vec<_> = files.iter().map(|file| place.text(file)).collect();
    for secret in ["id_ed25519", "node_ed25519"] {
        assert_eq!(place.file(secret).metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(place.file("").metadata().unwrap().permissions().mode() & 0o777, 0o700);
    assert!(place.text("authorized_keys").contains(place.text("id_ed25519.pub").trim()), "my own key may come in");
    assert!(place.text("id_ed25519.pub").trim().ends_with("me@alpha"));

    assert!(place.run(&["init"]).succeeds().contains("was made already"));
    assert_eq!(before, files.iter().map(|file| place.text(file)).collect::<Vec<_>>());
    place.run(&["init", "--name", "beta"]).fails(&["make the home", "its name is alpha, not beta"]);
    place.run(&["init", "--identity", "agent"]).fails(&["its identity is id_ed25519, not agent"]);
}

#[test]
fn a_half_made_home_is_named_and_then_completed() {
    for missing in ["node_ed25519", "id_ed25519", "authorized_keys", "grid.toml"] {
        let place = Place::made();
        let kept = place.text(if missing == "id_ed25519" { "node_ed25519" } else { "id_ed25519" });
        fs::remove_file(place.file(missing)).unwrap();
        place.run(&["nodes"]).fails(&[missing, "half made", "try: slashn --home", "init"]);
        assert!(place.run(&["init", "--name", "alpha"]).succeeds().contains(&format!("made {missing} in")));
        place.run(&["nodes"]).succeeds();
        assert_eq!(kept, place.text(if missing == "id_ed25519" { "node_ed25519" } else { "id_ed25519" }));
    }
}

#[test]
fn no_home_and_a_directory_of_other_things_are_named() {
    let place = Place::new();
    place.run(&["nodes"]).fails(&["open the home", "there is none yet", "try: slashn --home"]);
    fs::create_dir(place.file("")).unwrap();
    place.chmod("", 0o700);
    fs::write(place.file("thesis.tex"), "").unwrap();
    place.run(&["init"]).fails(&["make the home", "other files in it"]);
    assert_eq!(fs::read_dir(place.file("")).unwrap().count(), 1, "nothing was put into it");
}

#[test]
fn what_others_may_see_or_change_is_refused_with_the_chmod() {
    let place = Place::made();
    place.chmod("node_ed25519", 0o640);
    place.run(&["init"]).fails(&["node_ed25519", "has mode 0640", "chmod 600"]);
    place.chmod("node_ed25519", 0o600);
    for (file, command) in [("authorized_keys", "allowed"), ("known_nodes", "nodes"), ("grid.toml", "exports")] {
        place.chmod(file, 0o666);
        place.run(&[command]).fails(&[file, "has mode 0666", "chmod go-w"]);
        place.chmod(file, 0o600);
    }
    place.chmod("", 0o755);
    place.run(&["nodes"]).fails(&["has mode 0755", "chmod 700"]);
}

#[test]
fn a_garbled_file_is_refused_with_its_line() {
    let place = Place::made();
    fs::write(place.file("node_ed25519"), "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n").unwrap();
    place.run(&["init"]).fails(&["read a private key", "node_ed25519", "no whole OpenSSH private key"]);
    fs::write(place.file("grid.toml"), "name = \"alpha\"\nidentiti = \"agent\"\n").unwrap();
    place.run(&["exports"]).fails(&["grid.toml:2", "identiti"]);
    fs::write(place.file("grid.toml"), "name = \"alpha\"\n[exports\n").unwrap();
    place.run(&["exports"]).fails(&["grid.toml:2"]);
    fs::write(place.file("grid.toml"), "name = \"alpha\"\n").unwrap();
    fs::write(place.file("known_nodes"), "# mine\nbeta\n").unwrap();
    place.run(&["nodes"]).fails(&["known_nodes:2", "NAME ADDR:PORT TRUST"]);
}

#[test]
fn the_users_key_is_never_the_nodes() {
    let place = Place::made();
    fs::copy(place.file("id_ed25519"), place.file("node_ed25519")).unwrap();
    place.run(&["init"]).fails(&["node_ed25519", "is the user's key", "try: rm"]);
    let doctor = place.run(&["doctor"]);
    assert_eq!(doctor.status, 1);
    assert!(
        doctor.out.lines().any(|l| l.starts_with("bad  node key") && l.contains("is the user's key")),
        "{doctor:?}"
    );
}

#[test]
fn a_key_is_allowed_to_everything_or_only_to_some_exports_and_denied() {
    let place = Place::made();
    let out = place.run(&["allow", KEY]).succeeds();
    assert!(out.contains(KEY_PRINT) && out.contains("may run commands as you"), "{out}");
    let ran = place.run(&["allow", KEY, "--only", "docs:ro"]);
    assert!(ran.err.contains("docs: nothing is exported by that name yet"), "{ran:?}");
    for export in ["docs", "src"] {
        place.run(&["export", &format!("{export}=/etc")]).succeeds();
    }
    let out = place.run(&["allow", KEY, "--only", "docs:ro", "--only", "src"]).succeeds();
    assert!(out.contains("only docs:ro,src, no commands"), "{out}");
    let allowed = place.run(&["allowed"]).succeeds();
    assert_eq!(allowed.matches(KEY_PRINT).count(), 1, "the second line took the place of the first: {allowed}");
    assert!(allowed.contains(&format!("{KEY_PRINT} only docs:ro,src bob")), "{allowed}");
    let json = place.run(&["allowed", "--json"]).succeeds();
    assert!(json.contains("\"docs:ro\"") && json.contains("\"commands\": false"), "{json}");

    place.run(&["deny", KEY_PRINT]).succeeds();
    assert!(!place.run(&["allowed"]).succeeds().contains("bob"));
    place.run(&["deny", KEY_PRINT]).fails(&["deny", "no key of", "try: slashn allowed"]);
}

#[test]
fn what_is_no_key_or_no_export_is_not_allowed() {
    let place = Place::made();
    let before = place.text("authorized_keys");
    place.run(&["allow", "ssh-ed25519 AAAA"]).fails(&["read the key", "no public key"]);
    place.run(&["allow", &format!("{KEY}\n{KEY}")]).fails(&["more than one line"]);
    place.run(&["allow", &format!("command=\"ls\" {KEY}")]).fails(&["no public key"]);
    assert_eq!(place.run(&["allow", KEY, "--only", "a\",from=\"b"]).status, 2);
    assert_eq!(place.run(&["deny", "bob"]).status, 2);
    assert_eq!(place.text("authorized_keys"), before);
}

#[test]
fn a_line_that_cannot_be_honoured_is_named_and_hides_no_other() {
    let place = Place::made();
    let text = format!("{}no-pty {KEY}\ngarbage\n", place.text("authorized_keys"));
    fs::write(place.file("authorized_keys"), text).unwrap();
    let ran = place.run(&["allowed"]);
    assert_eq!((ran.status, ran.out.lines().count()), (0, 1), "{ran:?}");
    assert!(ran.err.contains("authorized_keys:4: option `no-pty` cannot be honoured"), "{ran:?}");
    assert!(ran.err.contains("authorized_keys:5: "), "{ran:?}");
    let doctor = place.run(&["doctor"]);
    assert!(doctor.out.contains("warn authorized_keys: refused: "), "{doctor:?}");
}

#[test]
fn a_directory_is_exported_by_its_absolute_path_and_unexported() {
    let place = Place::made();
    fs::create_dir(place.top.path().join("docs")).unwrap();
    let ran = place.command().args(["export", "docs=docs:ro"]).current_dir(place.top.path()).output().unwrap();
    Ran::of(ran).succeeds();
    let docs = fs::canonicalize(place.top.path().join("docs")).unwrap();
    assert_eq!(place.run(&["exports"]).succeeds(), format!("docs {} read-only\n", docs.display()));
    assert!(place.run(&["exports", "--json"]).succeeds().contains("\"read_only\": true"));
    place.run(&["export", "x=/no/such"]).fails(&["export", "/no/such"]);
    place.run(&["export", "x=/dev/null"]).fails(&["is not a directory"]);
    assert_eq!(place.run(&["export", "a/b=/tmp"]).status, 2);
    assert_eq!(place.run(&["export", "tmp"]).status, 2);
    place.run(&["unexport", "docs"]).succeeds();
    assert_eq!(place.run(&["exports"]).succeeds(), "");
    place.run(&["unexport", "docs"]).fails(&["unexport", "docs", "try: slashn exports"]);
}

#[test]
fn a_node_is_remembered_listed_and_forgotten() {
    let place = Place::made();
    // Port 9 of the discard service: nobody is there, which is no hindrance when the key is given.
    place.run(&["add", "beta", "127.0.0.1:9", "--key", KEY_PRINT, "--trust", "cwd"]);
    assert_eq!(place.run(&["nodes"]).succeeds(), format!("beta 127.0.0.1:9 cwd {KEY_PRINT}\n"));
    let json = place.run(&["nodes", "--json"]).succeeds();
    assert!(json.contains("\"name\": \"beta\"") && json.contains("\"trust\": \"cwd\""), "{json}");
    let other = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU";
    place.run(&["add", "beta", "127.0.0.1:9", "--key", other]).fails(&["another key", KEY_PRINT, "slashn remove beta"]);
    place.run(&["remove", "beta"]).succeeds();
    assert_eq!(place.run(&["nodes"]).succeeds(), "");
    place.run(&["remove", "beta"]).fails(&["remove", "no such node"]);
    for wrong in [["a/b", "h:1"], ["beta", "h"], ["beta", "h:99999"], ["-x", "h:1"]] {
        assert_eq!(place.run(&["add", wrong[0], wrong[1], "--key", KEY_PRINT]).status, 2, "{wrong:?}");
    }
}

#[test]
fn commands_that_run_at_once_lose_nothing() {
    let place = Place::made();
    let started: Vec<_> = (0..8)
        .map(|n| {
            let args = ["add", &format!("node{n}"), "127.0.0.1:9", "--key", KEY_PRINT];
            place.command().args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut child in started {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(place.run(&["nodes"]).succeeds().lines().count(), 8);
}

#[test]
fn doctor_finds_a_whole_home_whole() {
    let place = Place::made();
    let ran = place.run(&["doctor"]);
    for what in ["home", "node key", "user key", "authorized_keys", "known_nodes", "exports", "clock"] {
        assert!(ran.out.lines().any(|l| l.starts_with(&format!("ok   {what}: "))), "{what}: {ran:?}");
    }
    for what in ["/dev/fuse", "fusermount3", "user namespaces", "open files"] {
        assert!(ran.out.lines().any(|l| l.contains(&format!(" {what}: "))), "{what}: {ran:?}");
    }
}

#[test]
fn the_home_is_where_the_flag_the_variables_or_the_users_home_say() {
    let place = Place::new();
    let top = place.top.path();
    let made = |command: &mut Command| {
        let out = Ran::of(command.args(["init", "--name", "x"]).output().unwrap());
        if rustix::process::geteuid().is_root() && fs::exists("/etc/slashn").unwrap() {
            return; // Root's own home comes first there.
        }
        out.succeeds();
    };
    made(place.command().env_remove("SLASHN_HOME").env("HOME", top));
    assert!(top.join(".config/slashn/grid.toml").exists());
    made(place.command().env_remove("SLASHN_HOME").env("HOME", top).env("XDG_CONFIG_HOME", top.join("xdg")));
    assert!(top.join("xdg/slashn/grid.toml").exists());
    made(place.command().arg("--home").arg(top.join("flag")));
    assert!(top.join("flag/grid.toml").exists());
    Ran::of(place.command().env_remove("SLASHN_HOME").arg("nodes").output().unwrap())
        .fails(&["find the home", "$HOME"]);
}

#[test]
fn completions_and_manual_pages_are_printed() {
    let place = Place::new();
    assert!(place.run(&["completions", "bash"]).succeeds().contains("complete"));
    assert!(place.run(&["man", "add"]).succeeds().contains(".TH slashn-add 1"));
    assert!(place.run(&["man", "rcpu"]).succeeds().contains(".TH rcpu 1"));
    place.run(&["man", "bogus"]).fails(&["man", "bogus", "no such command"]);
    assert_eq!(place.run(&["bogus"]).status, 2);
    assert_eq!(place.run(&[]).status, 2);
}
