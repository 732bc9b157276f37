//! The plugin under real container runtimes.
