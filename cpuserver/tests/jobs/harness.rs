//! A main for tests that start their own program again: `launcher` as the first argument is the launcher, anything
//! else what a test runner asks (`--list`, a name to run, `--exact`), as libtest answers it.

use std::process::ExitCode;

/// A test: its name, and what it does.
pub(crate) struct Test(pub(crate) &'static str, pub(crate) fn());

/// Makes the table of these functions.
macro_rules! tests {
    ($($name:ident)*) => { &[$($crate::harness::Test(stringify!($name), || $crate::harness::block_on($name()))),*] };
}
pub(crate) use tests;

/// Runs one test's future.
pub(crate) fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let limit = std::time::Duration::from_secs(300);
    runtime.block_on(async { tokio::time::timeout(limit, test).await.expect("the test ends") });
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
}

/// What the test program does.
pub(crate) fn main(tests: &'static [Test]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "launcher") {
        return cpuserver::launch::main();
    }
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let (mut filters, mut skipped) = (Vec::new(), Vec::new());
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--skip" => skipped.extend(words.next()),
            "--format" | "--test-threads" => drop(words.next()),
            flag if flag.starts_with('-') => {}
            _ => filters.push(word),
        }
    }
    let chosen = |name: &str| {
        let matches = |filter: &&String| if has("--exact") { *filter == name } else { name.contains(filter.as_str()) };
        let wanted = filters.is_empty() || filters.iter().any(matches);
        wanted && !has("--ignored") && !skipped.iter().any(|skip| name.contains(skip.as_str()))
    };
    let mut failed = 0;
    for test in tests.iter().filter(|test| chosen(test.0)) {
        if has("--list") {
            println!("{}: test", test.0);
        } else if let Err(panic) = std::thread::spawn(test.1).join() {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            println!("test {} ... FAILED: {}", test.0, text.unwrap_or_default());
            failed += 1;
        } else {
            println!("test {} ... ok", test.0);
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}
