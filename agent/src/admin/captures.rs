//! Captures on the admin socket: `POST /captures` answers with the file as it grows, `DELETE /captures/NUMBER` ends one.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, post};
use axum::{Json, Router};
use futures_util::stream;

use super::Node;
use crate::pcap::{Captures, NUMBER_HEADER, Refused, Request, Writer};

#[derive(Clone)]
struct Context {
    node: Arc<Node>,
    captures: Arc<Captures>,
}

pub(super) fn routes(node: Arc<Node>, captures: Arc<Captures>) -> Router {
    Router::new()
        .route("/captures", post(start))
        .route("/captures/{number}", delete(end))
        .with_state(Context { node, captures })
}

async fn start(State(context): State<Context>, Json(request): Json<Request>) -> Response {
    let begun =
        tokio::task::spawn_blocking(move || context.captures.start(&context.node.pods, &request)).await;
    match begun {
        Ok(Ok((number, writer))) => {
            let headers = [
                (header::CONTENT_TYPE.as_str(), "application/x-pcapng".to_owned()),
                (NUMBER_HEADER, number.to_string()),
            ];
            (headers, body(writer)).into_response()
        }
        Ok(Err(refused)) => {
            let status = match refused {
                Refused::Filter(_) | Refused::Snaplen => StatusCode::BAD_REQUEST,
                Refused::NoPod(_) => StatusCode::NOT_FOUND,
                Refused::TooMany => StatusCode::TOO_MANY_REQUESTS,
            };
            (status, format!("{refused}\n")).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// The file, as it grows. A client that goes away drops it, and so ends the capture.
fn body(writer: Writer) -> Body {
    Body::from_stream(stream::unfold(writer, |mut writer| async {
        let piece = writer.next_piece().await?;
        Some((Ok::<_, Infallible>(Bytes::from(piece)), writer))
    }))
}

async fn end(State(context): State<Context>, Path(number): Path<u64>) -> StatusCode {
    if context.captures.end(number) { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND }
}
