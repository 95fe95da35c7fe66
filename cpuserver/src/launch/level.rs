//! Levels of one architecture: programs that were made for newer processors.
//!
//! The x86-64 psABI has four: what a program needs is in its GNU property note, which linkers write (`-z x86-64-v3`)
//! and ld.so(8) heeds; what a processor has is asked of that. The first is every processor's, and not spoken of.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::interpreter::{Elf, HEAD};

/// The levels above the first, and one above those that are known here.
const NAMES: [&str; 4] = ["x86_64-v2", "x86_64-v3", "x86_64-v4", "x86_64-v5"];
/// As much of the notes as is looked at.
const NOTES: u64 = 4096;

/// The level that the program at `path` needs, by the names of [`levels`], if that is not every processor's.
pub fn level(path: &Path) -> Option<&'static str> {
    const EM_X86_64: u64 = 62;
    const PT_GNU_PROPERTY: u64 = 0x6474_e553;
    let file = File::open(path).ok()?;
    let mut head = [0; HEAD];
    let got = file.read_at(&mut head, 0).ok()?;
    let elf = Elf::parse(&head[..got]).filter(|elf| elf.machine == EM_X86_64)?;
    let needed = needed(&elf.segment(&file, PT_GNU_PROPERTY, NOTES)?)?;
    let highest = 31u32.checked_sub(needed.leading_zeros())?;
    NAMES.get((highest as usize).checked_sub(1)?).or(NAMES.last().filter(|_| highest > 0)).copied()
}

/// The bits of the property `GNU_PROPERTY_X86_ISA_1_NEEDED` in a note of type `NT_GNU_PROPERTY_TYPE_0`.
fn needed(notes: &[u8]) -> Option<u32> {
    const NEEDED: u32 = 0xc000_8002;
    let word = |bytes: &[u8], at: usize| {
        let word = bytes.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(word.try_into().ok()?))
    };
    let (name, size, kind) = (word(notes, 0)?, word(notes, 4)? as usize, word(notes, 8)?);
    if (name, kind, notes.get(12..16)?) != (4, 5, b"GNU\0") {
        return None;
    }
    let mut rest = notes.get(16..)?;
    rest = &rest[..rest.len().min(size)];
    while let (Some(kind), Some(size)) = (word(rest, 0), word(rest, 4)) {
        if kind == NEEDED {
            return word(rest, 8);
        }
        // Each is padded to eight bytes.
        rest = rest.get(8usize.checked_add(size as usize)?.checked_next_multiple_of(8)?..)?;
    }
    None
}

/// The levels that this processor has, but for the first.
pub fn levels() -> &'static [&'static str] {
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! has { ($($name:tt)*) => { true $(&& std::arch::is_x86_feature_detected!($name))* } }
        let second = has!("cmpxchg16b" "popcnt" "sse3" "sse4.1" "sse4.2" "ssse3");
        let third = second && has!("avx" "avx2" "bmi1" "bmi2" "f16c" "fma" "lzcnt" "movbe");
        let fourth = third && has!("avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl");
        &NAMES[..usize::from(second) + usize::from(third) + usize::from(fourth)]
    }
    #[cfg(not(target_arch = "x86_64"))]
    &[]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn property(kind: u32, value: &[u8]) -> Vec<u8> {
        let mut property = [kind.to_le_bytes(), (value.len() as u32).to_le_bytes()].concat();
        property.extend(value);
        property.resize(property.len().next_multiple_of(8), 0);
        property
    }

    fn note(properties: &[Vec<u8>]) -> Vec<u8> {
        let all = properties.concat();
        let words = [4, all.len() as u32, 5].map(u32::to_le_bytes).concat();
        [&words[..], b"GNU\0", &all].concat()
    }

    #[test]
    fn what_a_program_needs_is_among_its_properties() {
        let needs = |bits: u32| property(0xc000_8002, &bits.to_le_bytes());
        assert_eq!(needed(&note(&[property(0xc000_0002, &[3, 0, 0, 0]), needs(7)])), Some(7));
        assert_eq!(needed(&note(&[property(1, &[0; 8])])), None);
        assert_eq!(needed(&note(&[])), None);
        assert_eq!(level(&std::env::current_exe().unwrap()), None);
        assert!(NAMES.starts_with(levels()));
    }

    proptest! {
        #[test]
        fn any_notes_are_read_safely(notes: Vec<u8>, properties: Vec<u8>) {
            let _ = (needed(&notes), needed(&note(&[properties])));
        }
    }
}
