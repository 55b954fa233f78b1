//! Medians and spreads.

use serde_json::{Value, json};

/// The median; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Ratios of two variants, round by round: a round's two turns lie close together, so what the machine did meanwhile
/// concerns both.
pub fn ratios(values: &[f64], base: &[f64]) -> Vec<f64> {
    values.iter().zip(base).map(|(value, base)| value / base).collect()
}

/// The median with the lowest and the highest: `0.94 (0.91–0.96)`.
pub fn spread(values: &[f64]) -> String {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{} ({}–{})", figure(median(values)), figure(low), figure(high))
}

/// A number for people: three or four digits, thousands grouped.
pub fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => grouped(value.round() as u64),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A whole number with a comma at every third digit.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What was measured, for programs: every round and the median.
pub fn raw(values: &[f64]) -> Value {
    json!({ "median": median(values), "rounds": values })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn a_ratio_is_taken_within_its_round() {
        // The machine was half as fast in the second round: the ratio does not show it.
        let ratios = ratios(&[90.0, 45.0], &[100.0, 50.0]);
        assert_eq!(ratios, [0.9, 0.9]);
        assert_eq!(spread(&ratios), "0.90 (0.90–0.90)");
    }

    #[test]
    fn figures_have_three_or_four_digits() {
        assert_eq!([0.5, 9.994, 12.34, 99.94, 1_234.5].map(figure), ["0.50", "9.99", "12.3", "99.9", "1,235"]);
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
