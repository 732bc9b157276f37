//! "Did you mean ...?"

/// The one of `known` that `word` is most likely a misspelling of.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let distances = known.iter().map(|candidate| (distance(&lower, &candidate.to_lowercase()), *candidate));
    let (distance, candidate) = distances.min_by_key(|(distance, _)| *distance)?;
    // A third of the word may be wrong: more is another word.
    (distance <= candidate.chars().count().max(3) / 3).then_some(candidate)
}

/// Levenshtein's, with two neighbours swapped as one step.
fn distance(one: &str, other: &str) -> usize {
    let one: Vec<char> = one.chars().collect();
    let other: Vec<char> = other.chars().collect();
    // A word much longer than any key is none of them; this also bounds the work.
    if one.len() > 64 || other.len() > 64 {
        return usize::MAX;
    }
    // Each row begins with what deleting everything so far costs, the first one holds what inserting does.
    let mut rows: Vec<Vec<usize>> = (0..=one.len()).map(|row| (row..=row + other.len()).collect()).collect();
    for row in 1..=one.len() {
        for column in 1..=other.len() {
            let replaced = rows[row - 1][column - 1] + usize::from(one[row - 1] != other[column - 1]);
            let shifted = rows[row - 1][column].min(rows[row][column - 1]) + 1;
            let mut least = replaced.min(shifted);
            let swapped = row > 1
                && column > 1
                && one[row - 1] == other[column - 2]
                && one[row - 2] == other[column - 1];
            if swapped {
                least = least.min(rows[row - 2][column - 2] + 1);
            }
            rows[row][column] = least;
        }
    }
    rows[one.len()][other.len()]
}
