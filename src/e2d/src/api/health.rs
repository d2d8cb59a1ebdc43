//! The gRPC health service.

use super::Api;
use e2d_api::health::health_check_response::ServingStatus;
use e2d_api::health::health_server::Health;
use e2d_api::health::{HealthCheckRequest, HealthCheckResponse};
use std::pin::Pin;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

fn serving() -> HealthCheckResponse {
    HealthCheckResponse { status: ServingStatus::Serving.into() }
}

#[tonic::async_trait]
impl Health for Api {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.into_inner().service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(serving()))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = request.into_inner().service.is_empty();
        let status = if known { ServingStatus::Serving } else { ServingStatus::ServiceUnknown };
        let now = tokio_stream::once(Ok(HealthCheckResponse { status: status.into() }));
        // It serves for as long as there is somebody to answer; the end of the process ends the stream.
        Ok(Response::new(Box::pin(now.chain(tokio_stream::pending()))))
    }
}
