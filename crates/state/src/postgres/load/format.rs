//! What is given to be loaded, by its first bytes.

#[derive(Debug, PartialEq, Eq)]
pub enum Format {
    Sql,
    /// pg_dump's custom or tar format: pg_restore makes SQL of it.
    Archive,
    /// What, and a command that makes SQL of it.
    Packed(&'static str, &'static str),
}

/// Bytes that are looked at.
pub const HEAD_BYTES: usize = 512;

pub fn of(head: &[u8]) -> Format {
    let is_tar = head.get(257..262) == Some(b"ustar");
    match head {
        [b'P', b'G', b'D', b'M', b'P', ..] => Format::Archive,
        _ if is_tar && head.starts_with(b"toc.dat\0") => Format::Archive,
        _ if is_tar => Format::Packed("a tar archive that is no dump", "tar -xOf FILE"),
        [0x1f, 0x8b, ..] => Format::Packed("compressed by gzip", "gunzip -c FILE"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Format::Packed("compressed by zstd", "zstdcat FILE"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Format::Packed("compressed by xz", "xzcat FILE"),
        [b'B', b'Z', b'h', ..] => Format::Packed("compressed by bzip2", "bzcat FILE"),
        [0x04, 0x22, 0x4d, 0x18, ..] => Format::Packed("compressed by lz4", "lz4cat FILE"),
        [b'P', b'K', 3, 4, ..] => Format::Packed("a zip archive", "unzip -p FILE"),
        _ => Format::Sql,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_apart() {
        let tar = |name: &[u8]| {
            let mut head = [0; HEAD_BYTES];
            head[..name.len()].copy_from_slice(name);
            head[257..262].copy_from_slice(b"ustar");
            of(&head)
        };
        assert_eq!(of(b"--\n-- PostgreSQL database dump"), Format::Sql);
        assert_eq!(of(b""), Format::Sql);
        assert_eq!(of(b"PGDMP\x01\x0e"), Format::Archive);
        assert_eq!(tar(b"toc.dat"), Format::Archive);
        assert!(matches!(tar(b"orders.sql"), Format::Packed(..)));
        assert!(matches!(
            of(b"\x1f\x8b\x08"),
            Format::Packed("compressed by gzip", _)
        ));
    }
}
