//! Larger bounds, for when there is time.
