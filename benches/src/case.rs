//! The cases: one fio job file each, compiled in, so that the runner and a person with fio run the same text.

/// In what a case is best counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Operations a second.
    Iops,
    /// Bytes a second.
    Bandwidth,
}

/// Which of fio's three kinds of operation carries the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Writes that wait for flushes: rates are the writes', latencies the flushes'.
    WriteFlush,
}

/// One fio job.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// As on the command line and in the results; the job file's name.
    pub name: &'static str,
    /// The job file's text.
    pub job: &'static str,
    /// How to count.
    pub unit: Unit,
    /// What to count.
    pub direction: Direction,
}

macro_rules! case {
    ($name:literal, $unit:ident, $direction:ident) => {
        Case {
            name: $name,
            job: include_str!(concat!("../fio/", $name, ".fio")),
            unit: Unit::$unit,
            direction: Direction::$direction,
        }
    };
}

/// All cases, in the order in which they run: reads first, while the page cache is as the prefill left it.
pub const CASES: [Case; 10] = [
    case!("randread-4k-qd1", Iops, Read),
    case!("randread-4k-qd32", Iops, Read),
    case!("randread-4k-qd128", Iops, Read),
    case!("seqread-128k-qd16", Bandwidth, Read),
    case!("randwrite-4k-qd1", Iops, Write),
    case!("randwrite-4k-qd32", Iops, Write),
    case!("randwrite-4k-qd128", Iops, Write),
    case!("seqwrite-128k-qd16", Bandwidth, Write),
    case!("writeflush-4k-qd1", Iops, WriteFlush),
    case!("writeflush-4k-qd32", Iops, WriteFlush),
];

/// The job that writes everything once, before anything is measured.
pub const PREFILL: &str = include_str!("../fio/prefill.fio");

/// The cases that `only` names, by name or by a part of it; all where it is empty.
///
/// # Errors
/// With the word that matches no case.
pub fn select(only: &[String]) -> Result<Vec<Case>, String> {
    if let Some(unknown) =
        only.iter().find(|word| !CASES.iter().any(|case| case.name.contains(word.as_str())))
    {
        let known: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        return Err(format!("no case matches {unknown:?}; there are {}", known.join(", ")));
    }
    // A whole name is that case alone: "randread-4k-qd1" is also a part of "randread-4k-qd128".
    let whole = |word: &String| CASES.iter().any(|case| case.name == word);
    let fits = |case: &Case, word: &String| {
        if whole(word) { case.name == word } else { case.name.contains(word.as_str()) }
    };
    let wanted = |case: &Case| only.is_empty() || only.iter().any(|word| fits(case, word));
    Ok(CASES.into_iter().filter(wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(only: &[&str]) -> Vec<&'static str> {
        let only: Vec<String> = only.iter().map(ToString::to_string).collect();
        select(&only).unwrap().iter().map(|case| case.name).collect()
    }

    #[test]
    fn parts_of_names_select() {
        assert_eq!(names(&[]).len(), CASES.len());
        assert_eq!(names(&["seq"]), ["seqread-128k-qd16", "seqwrite-128k-qd16"]);
        assert_eq!(names(&["randread-4k-qd1"]), ["randread-4k-qd1"]);
        assert_eq!(
            names(&["randread-4k-qd32", "writeflush-4k-qd1"]),
            ["randread-4k-qd32", "writeflush-4k-qd1"]
        );
        assert!(select(&["randomwrite".to_owned()]).unwrap_err().contains("randomwrite"));
    }

    /// The name says what the job does; a job file edited on its own would make the tables lie.
    #[test]
    fn names_agree_with_job_files() {
        for case in CASES {
            let parts: Vec<&str> = case.name.split('-').collect();
            let [kind, size, depth] = parts[..] else { panic!("{}", case.name) };
            let rw = match kind {
                "writeflush" => "randwrite",
                "seqread" => "read",
                "seqwrite" => "write",
                other => other,
            };
            let depth = depth.strip_prefix("qd").unwrap();
            for line in [format!("rw={rw}"), format!("bs={size}"), format!("iodepth={depth}")] {
                assert!(case.job.lines().any(|found| found == line), "{}: {line}", case.name);
            }
            let flushes = case.job.lines().any(|line| line == format!("fsync={depth}"));
            assert_eq!(flushes, case.direction == Direction::WriteFlush, "{}", case.name);
        }
    }
}
