//! Namespace files: the text of namespace(6), read with nom and printed so that it reads back the same.
//!
//! A line is a command and its words. Words are separated by blanks; in single quotes anything stands for itself and a
//! doubled quote for one; `$name` outside quotes is looked up, up to the next blank, `/`, `$`, `.`, `!` or quote. `#`
//! begins a comment where a line begins; `'#...'` names a kernel device or a node's own tree.

use std::fmt;

use nom::bytes::complete::take_while1;
use nom::character::complete::{char, none_of, space0, space1};
use nom::combinator::{map, opt, recognize};
use nom::multi::{fold_many1, many0, separated_list1};
use nom::sequence::{delimited, preceded};
use nom::{IResult, Parser};

use crate::namespace::MAX_LINES;

/// How something is mounted: the flags of mount(1) and bind(1). None of them: instead of what is there.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Flags {
    /// `-b`: before what is there.
    pub before: bool,
    /// `-a`: after what is there.
    pub after: bool,
    /// `-c`: files may be created in it.
    pub create: bool,
    /// `-C`: its contents may be cached.
    pub cache: bool,
}

impl Flags {
    /// Whether it joins what is there.
    pub fn union(self) -> bool {
        self.before || self.after
    }
}

/// One line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Line {
    /// `mount [-abcC] server old [spec]`
    Mount {
        /// How.
        flags: Flags,
        /// Where the tree is served.
        server: String,
        /// Where to mount it.
        old: String,
        /// What to attach to there; empty for the root.
        spec: String,
    },
    /// `bind [-abcC] new old`
    Bind {
        /// How.
        flags: Flags,
        /// What.
        new: String,
        /// Where.
        old: String,
    },
    /// `unmount [new] old`
    Unmount {
        /// What; everything, without.
        new: Option<String>,
        /// Where.
        old: String,
    },
    /// `cd dir`
    Cd {
        /// Where to.
        dir: String,
    },
}

impl Line {
    /// The path that it is about.
    pub fn old(&self) -> &str {
        match self {
            Self::Mount { old, .. } | Self::Bind { old, .. } | Self::Unmount { old, .. } | Self::Cd { dir: old } => old,
        }
    }

    /// How it mounts or binds.
    pub fn flags(&self) -> Flags {
        match self {
            Self::Mount { flags, .. } | Self::Bind { flags, .. } => *flags,
            Self::Unmount { .. } | Self::Cd { .. } => Flags::default(),
        }
    }
}

/// Why a text is no namespace file.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}, column {column}: expected {expected}")]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// The column in bytes, from 1.
    pub column: usize,
    /// What would have been right there.
    pub expected: String,
}

/// The lines of `text`; `variable` gives what `$name` stands for, `None` for one that is not set, which is refused.
pub fn parse(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Vec<Line>, ParseError> {
    let mut lines = Vec::new();
    for (i, line) in logical_lines(text) {
        if lines.len() == MAX_LINES {
            return Err(error(i, line, line, &format!("the end: there are at most {MAX_LINES} lines")));
        }
        let words = match words(line) {
            Ok(words) => words,
            Err(rest) => return Err(error(i, line, rest, "a word, or the quote that ends it")),
        };
        let Some((verb, arguments)) = words.split_first() else { continue };
        // In quotes it is no flag.
        let flagged = arguments.first().is_some_and(|first| first.at.starts_with('-'));
        let arguments = arguments.iter().map(|word| {
            word.expand(variable)
                .map_err(|name| error(i, line, word.at, &format!("a variable that is set, not ${name}")))
        });
        let arguments: Vec<String> = arguments.collect::<Result<_, _>>()?;
        let verb_text = verb.expand(variable).unwrap_or_default();
        lines.push(command(&verb_text, arguments, flagged).map_err(|expected| error(i, line, verb.at, &expected))?);
    }
    Ok(lines)
}

/// The lines that say something, each with its number; a quoted line end does not end a line.
fn logical_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = text;
    let mut number = 1;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let comment = rest.trim_start_matches([' ', '\t']).starts_with('#');
            let mut quoted = false;
            let end = rest.char_indices().find(|(_, c)| {
                quoted ^= *c == '\'' && !comment;
                *c == '\n' && !quoted
            });
            let (line, after) = end.map_or((rest, ""), |(at, _)| (&rest[..at], &rest[at + 1..]));
            let this = number;
            number += line.matches('\n').count() + 1;
            rest = after;
            if !comment && !line.trim().is_empty() {
                return Some((this, line));
            }
        }
        None
    })
}

fn error(number: usize, line: &str, at: &str, expected: &str) -> ParseError {
    let before = &line[..line.len() - at.len()];
    let line = number + before.matches('\n').count();
    let column = before.len() - before.rfind('\n').map_or(0, |at| at + 1) + 1;
    ParseError { line, column, expected: expected.into() }
}

fn command(verb: &str, arguments: Vec<String>, flagged: bool) -> Result<Line, String> {
    let flags = if flagged { flags(&arguments[0])? } else { Flags::default() };
    let mut words = arguments.into_iter().skip(usize::from(flagged)).collect::<Vec<_>>();
    let count = words.len();
    let mut word = || if words.is_empty() { String::new() } else { words.remove(0) };
    match (verb, count, flagged) {
        ("mount", 2 | 3, _) => Ok(Line::Mount { flags, server: word(), old: word(), spec: word() }),
        ("bind", 2, _) => Ok(Line::Bind { flags, new: word(), old: word() }),
        ("unmount", 1, false) => Ok(Line::Unmount { new: None, old: word() }),
        ("unmount", 2, false) => Ok(Line::Unmount { new: Some(word()), old: word() }),
        ("cd", 1, false) => Ok(Line::Cd { dir: word() }),
        ("mount", ..) => Err("mount [-abcC] server old [spec]".into()),
        ("bind", ..) => Err("bind [-abcC] new old".into()),
        ("unmount", ..) => Err("unmount [new] old".into()),
        ("cd", ..) => Err("cd dir".into()),
        (other, ..) => Err(format!("mount, bind, unmount or cd, not {other}")),
    }
}

fn flags(text: &str) -> Result<Flags, String> {
    let mut flags = Flags::default();
    for letter in text.chars().skip(1) {
        match letter {
            'a' => flags.after = true,
            'b' => flags.before = true,
            'c' => flags.create = true,
            'C' => flags.cache = true,
            other => return Err(format!("a flag of -abcC, not {other}")),
        }
    }
    if flags.before && flags.after { Err("-a or -b, not both".into()) } else { Ok(flags) }
}

/// A word, and the rest of its line from where it begins.
struct Word<'a> {
    at: &'a str,
    parts: Vec<Part<'a>>,
}

enum Part<'a> {
    Text(String),
    Variable(&'a str),
}

impl<'a> Word<'a> {
    fn expand(&self, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, &'a str> {
        let part = |part: &Part<'a>| match part {
            Part::Text(text) => Ok(text.clone()),
            Part::Variable(name) => variable(name).ok_or(*name),
        };
        self.parts.iter().map(part).collect()
    }
}

/// The words of a line, or what is left where none can be read.
fn words(line: &str) -> Result<Vec<Word<'_>>, &str> {
    let parsed: IResult<&str, Vec<Word<'_>>> =
        delimited(space0, separated_list1(space1, word), (space0, opt(char('\r')))).parse(line);
    match parsed {
        Ok(("", words)) => Ok(words),
        Ok((rest, _)) => Err(rest),
        Err(_) => Err(line),
    }
}

fn word(at: &str) -> IResult<&str, Word<'_>> {
    let (rest, parts) = fold_many1(part, Vec::new, |mut parts, part| {
        parts.push(part);
        parts
    })
    .parse(at)?;
    Ok((rest, Word { at, parts }))
}

fn part(input: &str) -> IResult<&str, Part<'_>> {
    let plain = |c: char| !c.is_whitespace() && c != '\'' && c != '$';
    let name = |c: char| !c.is_whitespace() && !"/$'.!".contains(c);
    let in_quotes = recognize(many0(nom::branch::alt((none_of("'"), map(nom::bytes::complete::tag("''"), |_| '\'')))));
    nom::branch::alt((
        map(delimited(char('\''), in_quotes, char('\'')), |text: &str| Part::Text(text.replace("''", "'"))),
        map(preceded(char('$'), take_while1(name)), Part::Variable),
        map(take_while1(plain), |text: &str| Part::Text(text.into())),
    ))
    .parse(input)
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = [(self.before, 'b'), (self.after, 'a'), (self.create, 'c'), (self.cache, 'C')];
        let set: String = letters.iter().filter(|(on, _)| *on).map(|(_, letter)| *letter).collect();
        if set.is_empty() { Ok(()) } else { write!(f, " -{set}") }
    }
}

/// Prints a word so that it reads back the same.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(word) = *self;
        let plain = !word.is_empty()
            && !word.starts_with(['#', '-'])
            && word.chars().all(|c| !c.is_whitespace() && c != '\'' && c != '$');
        if plain { f.write_str(word) } else { write!(f, "'{}'", word.replace('\'', "''")) }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount { flags, server, old, spec } if spec.is_empty() => {
                write!(f, "mount{flags} {} {}", Quoted(server), Quoted(old))
            }
            Self::Mount { flags, server, old, spec } => {
                write!(f, "mount{flags} {} {} {}", Quoted(server), Quoted(old), Quoted(spec))
            }
            Self::Bind { flags, new, old } => write!(f, "bind{flags} {} {}", Quoted(new), Quoted(old)),
            Self::Unmount { new: None, old } => write!(f, "unmount {}", Quoted(old)),
            Self::Unmount { new: Some(new), old } => write!(f, "unmount {} {}", Quoted(new), Quoted(old)),
            Self::Cd { dir } => write!(f, "cd {}", Quoted(dir)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    fn mount(flags: Flags, server: &str, old: &str, spec: &str) -> Line {
        Line::Mount { flags, server: server.into(), old: old.into(), spec: spec.into() }
    }

    #[test]
    fn a_namespace_file_is_read() {
        let text =
            "# mine\n\nmount -bc '#tmp' /tmp\n  mount tls!pi!1 /n/'my pi' fs # x\nbind -a $home/bin /bin\ncd /\n";
        let text = text.replace(" # x", "");
        let home = |name: &str| (name == "home").then(|| "/home/u".to_string());
        let flags = Flags { before: true, create: true, ..Flags::default() };
        let bind = Flags { after: true, ..Flags::default() };
        let expected = [
            mount(flags, "#tmp", "/tmp", ""),
            mount(Flags::default(), "tls!pi!1", "/n/my pi", "fs"),
            Line::Bind { flags: bind, new: "/home/u/bin".into(), old: "/bin".into() },
            Line::Cd { dir: "/".into() },
        ];
        assert_eq!(parse(&text, &home).unwrap(), expected);
    }

    #[test]
    fn an_error_says_where_and_what_was_expected() {
        let at = |text: &str| {
            let err = parse(text, &none).unwrap_err();
            (err.line, err.column, err.expected)
        };
        assert_eq!(at("mount a /\n  mout b /\n"), (2, 3, "mount, bind, unmount or cd, not mout".into()));
        assert_eq!(at("bind $x /"), (1, 6, "a variable that is set, not $x".into()));
        assert_eq!(at("bind -ab a b").2, "-a or -b, not both");
        assert_eq!(at("mount a").2, "mount [-abcC] server old [spec]");
        assert_eq!(at("cd 'a").0, 1);
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back_the_same(words in prop::collection::vec("[ -~\n\u{e9}]{1,8}", 3), bits in 0u8..4) {
            let flags = Flags { before: bits & 1 != 0, after: bits == 2, create: bits & 2 != 0, cache: false };
            let flags = Flags { after: flags.after && !flags.before, ..flags };
            let lines = [
                mount(flags, &words[0], &words[1], &words[2]),
                Line::Bind { flags, new: words[1].clone(), old: words[2].clone() },
                Line::Unmount { new: Some(words[0].clone()), old: words[2].clone() },
            ];
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            prop_assert_eq!(parse(&text, &none).unwrap(), lines);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = parse(&text, &|name| Some(name.to_string()));
        }
    }
}
