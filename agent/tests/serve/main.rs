//! `tunproxy-agent serve` with pods that are really attached: the test plays the plugin.

mod allocator;
mod attachments;
mod captures;
mod documents;
mod flows;
mod lab;
