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
    /// Reads and writes as they come: rates are sums, each latency that of the slower kind.
    Mixed,
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

impl Case {
    /// A person's own job. It says what is done; where to is the runner's to say.
    ///
    /// # Errors
    /// When it is not one job, or says itself where to.
    pub fn own(name: &str, job: &str) -> Result<Self, String> {
        for (key, _) in settings(job) {
            if ["filename", "directory", "ioengine", "uri", "hostname", "opendir"].contains(&key) {
                return Err(format!(
                    "the job file sets {key}, but where to and how is said by --target, --bare and --legs: take the \
                     line out"
                ));
            }
        }
        let sections = job.lines().map(str::trim).filter(|line| line.starts_with('['));
        if sections.filter(|line| !line.eq_ignore_ascii_case("[global]")).count() != 1 {
            return Err("the job file must hold one job: one section beside [global]".to_owned());
        }
        // For the life of the program, as the built-in cases are.
        let (name, job) = (name.to_owned().leak(), format!("{job}\n").leak());
        Ok(Self { name, job, unit: Unit::Iops, direction: Direction::Mixed })
    }

    /// Whether it changes what it runs on.
    #[must_use]
    pub fn writes(&self) -> bool {
        let kinds = settings(self.job).filter(|(key, _)| ["rw", "readwrite"].contains(key));
        kinds.map(|(_, kind)| kind.split(':').next().unwrap_or_default()).any(|kind| !kind.ends_with("read"))
    }
}

/// The `key=value` lines of a job file.
fn settings(job: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = job.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';', '[']));
    lines.map(|line| line.split_once('=').map_or((line, ""), |(key, value)| (key.trim(), value.trim())))
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

    #[test]
    fn own_jobs_are_one_job_and_do_not_say_where_to() {
        let own = |job: &str| Case::own("mine", job);
        assert!(!own("[global]\nbs=4k\n[a]\nrw=randread").unwrap().writes());
        for kind in ["write", "randrw", "rw", "readwrite", "trim", "randwrite:8"] {
            assert!(own(&format!("[a]\nrw={kind}")).unwrap().writes(), "{kind}");
        }
        assert!(own("[a]\nrw=read\n[b]\nrw=write").unwrap_err().contains("one job"));
        assert!(own("[global]\nrw=read").unwrap_err().contains("one job"));
        assert!(own("[a]\nrw=read\nfilename=/dev/sda").unwrap_err().contains("filename"));
        let writing = CASES.iter().filter(|case| case.writes()).count();
        assert_eq!(writing, CASES.iter().filter(|case| case.direction != Direction::Read).count());
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
