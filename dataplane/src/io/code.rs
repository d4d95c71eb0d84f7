//! The program's own code in memory.

use std::ops::Range;

/// Takes the program's code out of this process's tables. Called when a process has started, most of what goes was needed
/// once: for arguments, formats, building a server. What is used comes back from the page cache when it is touched.
///
/// # Errors
/// When the system does not tell where the code is.
pub fn forget_mapped_code() -> std::io::Result<()> {
    code(&std::fs::read_to_string("/proc/self/maps")?).for_each(|range| unmap(&range));
    Ok(())
}

/// Where the code of program and libraries is. Their other parts may have been written to.
fn code(maps: &str) -> impl Iterator<Item = Range<usize>> {
    maps.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (range, rights, path) = (fields.next()?, fields.next()?, fields.nth(3)?);
        let (start, end) = range.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        (rights == "r-xp" && path.starts_with('/')).then_some(address(start)?..address(end)?)
    })
}

fn unmap(code: &Range<usize>) {
    let start = std::ptr::with_exposed_provenance_mut(code.start);
    // SAFETY: the range is a private mapping of a file that was never writable, so that no page of it differs from the
    // file: at the next touch the kernel maps the same bytes again.
    unsafe { libc::madvise(start, code.len(), libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
5581d4a00000-5581d4c00000 r--p 00000000 fe:00 131 /usr/bin/holdfast
5581d4c00000-5581d5a00000 r-xp 00200000 fe:00 131 /usr/bin/holdfast
5581d5a00000-5581d5a60000 r--p 01000000 fe:00 131 /usr/bin/holdfast
5581d6000000-5581d6060000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000100000 r-xp 00000000 00:00 0
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0 [vdso]
";

    #[test]
    fn only_code_of_files_is_unmapped() {
        let found: Vec<_> = code(MAPS).collect();
        assert_eq!((found.len(), &found[0]), (1, &(0x5581_d4c0_0000..0x5581_d5a0_0000)));
    }

    #[test]
    fn a_process_goes_on_without_its_startup_code() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let found: Vec<_> = code(&maps).collect();
        let here: fn() = a_process_goes_on_without_its_startup_code;
        assert!(found.iter().any(|range| range.contains(&(here as usize))), "this code is in {found:x?}");
        forget_mapped_code().unwrap();
        assert_eq!(code(MAPS).count(), 1);
    }
}
