//! What a Linux program asks the kernel to start it with.

use anyhow::{Context as _, ensure};

/// The type of a program header that names the interpreter (elf(5)).
const PT_INTERP: u32 = 3;

/// The dynamic linker that a 64-bit little-endian ELF program asks for; `None` if it is static. An error if it is no such program.
pub fn interpreter(program: &[u8]) -> anyhow::Result<Option<String>> {
    // The class (64 bits) and the order of bytes (least first) stand behind the magic number.
    ensure!(program.starts_with(b"\x7fELF\x02\x01"), "no 64-bit little-endian ELF program");
    let headers = number(program, 32, 8)?;
    let size = number(program, 54, 2)?;
    let count = number(program, 56, 2)?;
    for index in 0..count {
        let at = headers + index * size;
        if number(program, at, 4)? == PT_INTERP as usize {
            let (from, length) = (number(program, at + 8, 8)?, number(program, at + 32, 8)?);
            let name = from.checked_add(length).and_then(|to| program.get(from..to)).context("cut short")?;
            return Ok(Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()));
        }
    }
    Ok(None)
}

/// The number of `length` bytes that stands at `at`.
fn number(program: &[u8], at: usize, length: usize) -> anyhow::Result<usize> {
    let bytes = at.checked_add(length).and_then(|to| program.get(at..to)).context("cut short")?;
    let mut wide = [0; 8];
    wide[..length].copy_from_slice(bytes);
    Ok(usize::try_from(u64::from_le_bytes(wide))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header, and program headers of these types.
    fn program(types: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56 * types.len()];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = u8::try_from(types.len()).unwrap();
        for (index, kind) in types.iter().enumerate() {
            bytes[64 + 56 * index..][..4].copy_from_slice(&kind.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_static_program_asks_for_nobody() {
        assert_eq!(interpreter(&program(&[1, 2, 6])).unwrap(), None);
    }

    #[test]
    fn a_dynamic_program_names_its_linker() {
        let mut bytes = program(&[1, PT_INTERP]);
        let (at, name) = (bytes.len(), b"/lib/ld.so\0");
        bytes[64 + 56 + 8] = u8::try_from(at).unwrap();
        bytes[64 + 56 + 32] = u8::try_from(name.len()).unwrap();
        bytes.extend_from_slice(name);
        assert_eq!(interpreter(&bytes).unwrap().as_deref(), Some("/lib/ld.so"));
    }

    #[test]
    fn what_is_no_program_is_an_error() {
        assert!(interpreter(b"#!/bin/sh\n").is_err());
        assert!(interpreter(&program(&[1])[..66]).is_err());
    }
}
