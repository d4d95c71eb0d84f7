//! Where the records live: files of the data directory, or etcd.

use std::fmt;
use std::path::PathBuf;

use super::{Origin, Partial, Sourced};

const EXPECTED: &str = "expected file, or etcd://HOST:PORT[,HOST:PORT...][/PREFIX]";
/// etcd's own.
const ETCD_PORT: u16 = 2379;
/// Below which everything is kept where the URL names nothing.
const PREFIX: &str = "/holdfast";

/// The home of the records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RegistryHome {
    /// Files of the data directory.
    #[default]
    File,
    /// etcd, below a prefix.
    Etcd(EtcdHome),
}

impl RegistryHome {
    /// Whether other nodes can have their records in the same place.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        match self {
            Self::File => false,
            Self::Etcd(_) => true,
        }
    }
}

/// How etcd is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdHome {
    /// Servers and the prefix.
    pub place: EtcdPlace,
    /// PEM of who signed the servers' certificates; with it, TLS is spoken.
    pub ca: Option<PathBuf>,
    /// PEM of the certificate and the private key that this node shows.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The user, and the file that has the password.
    pub user: Option<(String, PathBuf)>,
}

/// What a URL names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdPlace {
    /// `HOST:PORT` of each server, in the order in which they are tried.
    pub endpoints: Vec<String>,
    /// Every key starts with this and a slash.
    pub prefix: String,
}

/// The value of the key `registry`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryPlace {
    /// `file`.
    File,
    /// `etcd://...`.
    Etcd(EtcdPlace),
}

/// The settings that only etcd has.
pub(super) const ETCD_ONLY: &str =
    "registry_ca, registry_cert, registry_key, registry_user, registry_password_file";

impl fmt::Display for RegistryHome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("file"),
            Self::Etcd(etcd) => {
                write!(f, "etcd://{}{}", etcd.place.endpoints.join(","), etcd.place.prefix)?;
                if let Some(ca) = &etcd.ca {
                    write!(f, " trusting {}", ca.display())?;
                }
                if let Some((certificate, _)) = &etcd.certificate {
                    write!(f, " with {}", certificate.display())?;
                }
                match &etcd.user {
                    Some((user, _)) => write!(f, " as {user}"),
                    None => Ok(()),
                }
            }
        }
    }
}

pub(crate) fn parse_place(text: &str) -> Result<RegistryPlace, String> {
    if text == "file" {
        return Ok(RegistryPlace::File);
    }
    let Some(rest) = text.strip_prefix("etcd://") else {
        return Err(format!("{text:?} is no registry: {EXPECTED}"));
    };
    let (servers, prefix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if servers.contains('@') {
        return Err("no user in the URL, where everybody on this machine could read the password: use \
                    --registry-user and --registry-password-file"
            .to_owned());
    }
    let endpoints = servers.split(',').map(endpoint).collect::<Result<Vec<_>, _>>()?;
    let prefix = prefix.trim_end_matches('/');
    let prefix = if prefix.is_empty() { PREFIX } else { prefix };
    if !prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte)) {
        return Err(format!("the prefix {prefix:?} has more than letters, digits, '/', '-', '_' and '.'"));
    }
    Ok(RegistryPlace::Etcd(EtcdPlace { endpoints, prefix: prefix.to_owned() }))
}

fn endpoint(text: &str) -> Result<String, String> {
    let told = || format!("{text:?} is no server: {EXPECTED} (IPv6 in brackets)");
    let bracketed = text.starts_with('[') && text.contains(']');
    let after = if bracketed { text.rfind(']').unwrap_or_default() } else { 0 };
    let (host, port) = match text.get(after..).and_then(|rest| rest.rfind(':')) {
        Some(at) => (&text[..after + at], text[after + at + 1..].parse().map_err(|_| told())?),
        None => (text, ETCD_PORT),
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let inside = |byte: u8| byte.is_ascii_hexdigit() || b":.[]".contains(&byte);
    let known = host.bytes().all(|byte| if bracketed { inside(byte) } else { plain(byte) });
    if host.is_empty() || !known {
        return Err(told());
    }
    Ok(format!("{host}:{port}"))
}

impl Partial {
    /// Settings of etcd that lack their other half, or etcd.
    pub(super) fn check_registry(&self, problems: &mut Vec<String>) {
        let origin = |setting: &Option<Sourced<PathBuf>>| setting.as_ref().map(|s| s.origin.clone());
        let user = self.registry_user.as_ref().map(|user| user.origin.clone());
        let (ca, cert) = (origin(&self.registry_ca), origin(&self.registry_cert));
        let (key, password) = (origin(&self.registry_key), origin(&self.registry_password_file));
        let etcd = matches!(&self.registry, Some(Sourced { value: RegistryPlace::Etcd(_), .. }));
        let first = [&ca, &cert, &key, &user, &password].into_iter().flatten().next();
        if let (Some(origin), false) = (first, etcd) {
            problems.push(format!(
                "{origin} is for a registry in etcd; remedy: set registry = \"etcd://HOST:2379\", or none of \
                 {ETCD_ONLY}"
            ));
            return;
        }
        let mut needs = |what: &Option<Origin>, other: &Option<Origin>, name: &str| {
            if let (Some(origin), None) = (what, other) {
                problems.push(format!("{origin} needs {name} as well; remedy: set {name}"));
            }
        };
        needs(&cert, &key, "registry_key");
        needs(&key, &cert, "registry_cert");
        needs(&cert, &ca, "registry_ca");
        needs(&user, &password, "registry_password_file");
        needs(&password, &user, "registry_user");
    }

    /// The home, once [`Self::check_registry`] had nothing to say.
    pub(super) fn registry_home(&self) -> RegistryHome {
        let path = |setting: &Option<Sourced<PathBuf>>| setting.as_ref().map(|s| s.value.clone());
        let user = self.registry_user.as_ref().map(|user| user.value.clone());
        match self.registry.as_ref().map(|place| &place.value) {
            None | Some(RegistryPlace::File) => RegistryHome::File,
            Some(RegistryPlace::Etcd(place)) => RegistryHome::Etcd(EtcdHome {
                place: place.clone(),
                ca: path(&self.registry_ca),
                certificate: path(&self.registry_cert).zip(path(&self.registry_key)),
                user: user.zip(path(&self.registry_password_file)),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> (Vec<String>, String) {
        match parse_place(text).unwrap() {
            RegistryPlace::Etcd(place) => (place.endpoints, place.prefix),
            RegistryPlace::File => panic!("{text}"),
        }
    }

    #[test]
    fn a_url_names_servers_and_a_prefix() {
        assert_eq!(parse_place("file"), Ok(RegistryPlace::File));
        assert_eq!(place("etcd://a"), (vec!["a:2379".to_owned()], "/holdfast".to_owned()));
        let (endpoints, prefix) = place("etcd://10.0.0.1:1,b.example:2,[::1],[fe80::1]:9/prod/blocks/");
        assert_eq!(endpoints, ["10.0.0.1:1", "b.example:2", "[::1]:2379", "[fe80::1]:9"]);
        assert_eq!(prefix, "/prod/blocks");
    }

    #[test]
    fn what_is_no_url_is_told_what_one_looks_like() {
        for bad in
            ["", "etcd", "http://a:1", "etcd://", "etcd://a,,b", "etcd://a:b", "etcd://::1", "etcd://a/x y"]
        {
            assert!(parse_place(bad).is_err(), "{bad}");
        }
        let said = parse_place("etcd://root:secret@a:2379").unwrap_err();
        assert!(said.contains("--registry-password-file") && !said.contains("secret"), "{said}");
    }
}
