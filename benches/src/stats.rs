//! Medians and spreads of a few rounds.

/// The middle value, or the mean of the two in the middle; `None` of nothing.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted.get(middle).copied()
    } else {
        Some(f64::midpoint(*sorted.get(middle.checked_sub(1)?)?, *sorted.get(middle)?))
    }
}

/// Smallest and largest; `None` of nothing.
#[must_use]
pub fn range(values: &[f64]) -> Option<(f64, f64)> {
    let smallest = values.iter().copied().min_by(f64::total_cmp)?;
    let largest = values.iter().copied().max_by(f64::total_cmp)?;
    Some((smallest, largest))
}

/// The distance of smallest and largest, as a share of the median.
#[must_use]
pub fn spread(values: &[f64]) -> Option<f64> {
    let (smallest, largest) = range(values)?;
    Some((largest - smallest) / median(values)?)
}

/// The median of `a/b` round by round: what disturbed one round disturbed both of its legs.
#[must_use]
pub fn paired_ratio(a: &[f64], b: &[f64]) -> Option<f64> {
    let ratios: Vec<f64> = a.iter().zip(b).filter(|(_, b)| **b > 0.0).map(|(a, b)| a / b).collect();
    median(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_sets() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 8.0]), Some(3.0));
        assert_eq!(range(&[4.0, 1.0, 2.0]), Some((1.0, 4.0)));
        assert_eq!(spread(&[4.0, 3.0, 5.0]), Some(0.5));
        assert_eq!(paired_ratio(&[2.0, 9.0, 40.0], &[1.0, 3.0, 10.0]), Some(3.0));
        assert_eq!(paired_ratio(&[2.0, 9.0], &[0.0, 3.0]), Some(3.0));
        assert_eq!(paired_ratio(&[], &[]), None);
    }
}
