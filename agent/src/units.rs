//! Sizes, durations and addresses as people write them: parsed strictly, printed so that they parse again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Why a text is not a size, a duration, a port range or an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not {what}: expected {expected}")]
pub struct InvalidUnit {
    what: &'static str,
    found: String,
    expected: &'static str,
}

fn invalid(what: &'static str, found: &str, expected: &'static str) -> InvalidUnit {
    InvalidUnit { what, found: found.chars().take(80).collect(), expected }
}

/// Suffix to power of 1024; the first of each row is the one that is printed.
const BINARY: [(&[&str], u32); 6] = [
    (&["", "B"], 0),
    (&["KiB", "K", "KB", "Ki"], 10),
    (&["MiB", "M", "MB", "Mi"], 20),
    (&["GiB", "G", "GB", "Gi"], 30),
    (&["TiB", "T", "TB", "Ti"], 40),
    (&["PiB", "P", "PB", "Pi"], 50),
];

/// A size such as `10GiB`, `512M`, `1.5G` or `4096`. Every suffix is a power of 1024: a disk that came out 7 %
/// smaller than its number in `qemu-img` or `nbdinfo` would be a trap.
///
/// # Errors
/// When the text is no number with a known suffix, is no whole number of bytes, or does not fit 64 bits.
pub fn parse_size(text: &str) -> Result<u64, InvalidUnit> {
    let bad =
        || invalid("a size", text, "a number of bytes or one with K, M, G, T or KiB, MiB, GiB, TiB (10GiB)");
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, suffix) = trimmed.split_at(digits);
    let suffix = suffix.trim();
    let shift = BINARY
        .iter()
        .find(|(names, _)| names.iter().any(|name| name.eq_ignore_ascii_case(suffix)))
        .map(|(_, shift)| *shift)
        .ok_or_else(bad)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // Six decimals are more than anybody writes, and keep the arithmetic exact in 128 bits.
    if fraction.len() > 6 || whole.is_empty() || (number.contains('.') && fraction.is_empty()) {
        return Err(bad());
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| bad())?);
    let scaled: u128 = format!("{whole}{fraction}").parse().map_err(|_| bad())?;
    let bytes = scaled.checked_mul(1u128 << shift).ok_or_else(bad)?;
    if bytes % scale != 0 {
        return Err(bad());
    }
    u64::try_from(bytes / scale).map_err(|_| bad())
}

/// The largest unit that prints the size in full where there is one with at most two decimals, else rounded to two
/// decimals: `10GiB`, `1.5GiB`, `4096B`.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    let (names, shift) = BINARY
        .iter()
        .rev()
        .find(|(_, shift)| *shift == 0 || bytes >> shift > 0)
        .copied()
        .unwrap_or(BINARY[0]);
    if shift == 0 {
        return format!("{bytes}B");
    }
    let hundredths = (u128::from(bytes) * 100 + (1u128 << (shift - 1))) >> shift;
    let (whole, part) = (hundredths / 100, hundredths % 100);
    let suffix = names.first().copied().unwrap_or_default();
    match part {
        0 => format!("{whole}{suffix}"),
        p if p % 10 == 0 => format!("{whole}.{}{suffix}", p / 10),
        p => format!("{whole}.{p:02}{suffix}"),
    }
}

/// A duration such as `60s`, `5m`, `1h30m`, `250ms` or `24h`. A bare number is refused: nobody remembers its unit.
///
/// # Errors
/// When a number or its unit is missing, unknown, or too large.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidUnit> {
    let bad = || invalid("a duration", text, "numbers with ms, s, m, h or d (60s, 5m, 1h30m)");
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        let part = Duration::from_millis(number.checked_mul(millis).ok_or_else(bad)?);
        total = total.checked_add(part).ok_or_else(bad)?;
        rest = after;
    }
    Ok(total)
}

/// `1h30m`, `60s` is `1m`, `250ms`: parses to the same again (below a millisecond is dropped).
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if millis >= size {
            text.push_str(&format!("{}{unit}", millis / size));
            millis %= size;
        }
    }
    text
}

/// An inclusive range of TCP ports, `20000-29999`.
///
/// # Errors
/// When it is no pair of port numbers, or the first is 0 or larger than the second.
pub fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, InvalidUnit> {
    let bad = || invalid("a port range", text, "FIRST-LAST with 1 <= FIRST <= LAST <= 65535 (20000-29999)");
    let (first, last) = text.trim().split_once('-').ok_or_else(bad)?;
    let first: u16 = first.trim().parse().map_err(|_| bad())?;
    let last: u16 = last.trim().parse().map_err(|_| bad())?;
    if first == 0 || first > last {
        return Err(bad());
    }
    Ok(first..=last)
}

/// Where to listen for NBD over TCP, or for scrapes of metrics: `PORT`, `:PORT`, `HOST:PORT` or `[IPV6]:PORT`. Without a
/// host it is loopback, because neither has authentication.
///
/// # Errors
/// When host or port do not parse; names are not looked up.
pub fn parse_tcp_listen(text: &str) -> Result<SocketAddr, InvalidUnit> {
    let bad = || invalid("a TCP address", text, "PORT, IP:PORT or [IPV6]:PORT (10809, 127.0.0.1:10809)");
    let trimmed = text.trim();
    let bare = trimmed.strip_prefix(':').unwrap_or(trimmed);
    if let Ok(port) = bare.parse::<u16>() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    trimmed.parse().map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("1K", 1024),
            ("512M", 512 << 20),
            ("512MiB", 512 << 20),
            ("10GiB", 10 << 30),
            ("10 gib", 10 << 30),
            ("1.5G", 3 << 29),
            ("0.25KiB", 256),
            ("2T", 2 << 40),
            ("16383PiB", 16383 << 50),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "G", "-1", "1X", "1.", ".5G", "1.3B", "1e3", "0x10", "99999999999999999999", "16384PiB"]
        {
            let error = parse_size(text).unwrap_err().to_string();
            assert!(error.contains("is not a size") && error.contains("10GiB"), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_print_in_the_largest_unit() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1KiB"),
            (1536, "1.5KiB"),
            (10 << 30, "10GiB"),
            ((10 << 30) + (1 << 28), "10.25GiB"),
            ((1 << 30) - 1, "1024MiB"),
            (u64::MAX, "16384PiB"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }

    #[test]
    fn durations_round_trip_and_need_a_unit() {
        for (text, millis) in [
            ("0s", 0),
            ("250ms", 250),
            ("60s", 60_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("24h", 86_400_000),
            ("1d2h3m4s5ms", 93_784_005),
        ] {
            let parsed = parse_duration(text).unwrap();
            assert_eq!(parsed, Duration::from_millis(millis), "{text}");
            assert_eq!(parse_duration(&format_duration(parsed)), Ok(parsed), "{text}");
        }
        for text in ["", "60", "s", "1x", "1.5s", "-1s", "99999999999999999999s", "18446744073709551615d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn port_ranges_are_ordered() {
        assert_eq!(parse_ports("20000-29999"), Ok(20000..=29999));
        assert_eq!(parse_ports("5-5"), Ok(5..=5));
        for text in ["", "1", "0-5", "6-5", "1-65536", "a-b", "1-2-3"] {
            assert!(parse_ports(text).is_err(), "{text}");
        }
    }

    #[test]
    fn tcp_without_a_host_is_loopback() {
        for text in ["10809", ":10809"] {
            assert_eq!(parse_tcp_listen(text), Ok("127.0.0.1:10809".parse().unwrap()));
        }
        assert_eq!(parse_tcp_listen("[::1]:1"), Ok("[::1]:1".parse().unwrap()));
        for text in ["", "localhost:1", "::1:1:x", "1.2.3.4", "70000"] {
            assert!(parse_tcp_listen(text).is_err(), "{text}");
        }
    }
}
