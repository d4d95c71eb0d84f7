//! A control group for each instance, where systemd has delegated a subtree to us. Best effort: nothing depends on it
//! but accounting and being able to see what belongs together. No controller is ever enabled here, because a group
//! with enabled controllers may not hold the agent itself beside its children.

use std::path::{Path, PathBuf};

use rustix::fs::getxattr;

/// The agent's own group, if it may make groups below it.
#[derive(Debug, Clone)]
pub struct Cgroup {
    own: Option<PathBuf>,
}

impl Cgroup {
    /// Looks once; says in one line where it is not available.
    #[must_use]
    pub fn detect() -> Self {
        let found = std::fs::read_to_string("/proc/self/cgroup")
            .map_err(|e| format!("/proc/self/cgroup: {e}"))
            .and_then(|text| delegated(&text));
        match found {
            Ok(own) => Self { own: Some(own) },
            Err(reason) => {
                tracing::info!(reason, "instances share the agent's control group");
                Self { own: None }
            }
        }
    }

    /// None at all.
    #[must_use]
    pub fn none() -> Self {
        Self { own: None }
    }

    fn group(&self, name: &str) -> Option<PathBuf> {
        self.own.as_ref().map(|own| own.join(format!("instance-{name}")))
    }

    /// Moves the process into the group of its instance.
    pub fn place(&self, name: &str, pid: i32) {
        let Some(group) = self.group(name) else { return };
        let made = match std::fs::create_dir(&group) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
            _ => std::fs::write(group.join("cgroup.procs"), pid.to_string()),
        };
        if let Err(error) = made {
            tracing::debug!(instance = name, %error, "it stays in the agent's control group");
        }
    }

    /// Removes the group of an instance that has ended; one that is not empty stays.
    pub fn remove(&self, name: &str) {
        if let Some(group) = self.group(name) {
            let _ = std::fs::remove_dir(group);
        }
    }
}

/// The directory of the unified hierarchy's group, when systemd has marked it as delegated.
fn delegated(proc_cgroup: &str) -> Result<PathBuf, String> {
    let path = proc_cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .ok_or("no cgroup v2 hierarchy here")?;
    let group = Path::new("/sys/fs/cgroup").join(path);
    let marked = ["user.delegate", "trusted.delegate"].into_iter().any(|mark| {
        let mut value = [0_u8; 8];
        getxattr(&group, mark, &mut value).is_ok_and(|n| value.get(..n) == Some(b"1".as_slice()))
    });
    if marked { Ok(group) } else { Err(format!("{} is not delegated (Delegate=yes)", group.display())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_unified_hierarchy_it_says_so() {
        assert!(delegated("12:cpu:/x\n1:name=systemd:/y\n").unwrap_err().contains("cgroup v2"));
        assert!(delegated("0::/no/such/group\n").unwrap_err().contains("not delegated"));
    }

    #[test]
    fn nothing_happens_where_there_is_none() {
        let cgroup = Cgroup::none();
        cgroup.place("demo.r1", 1);
        cgroup.remove("demo.r1");
    }
}
