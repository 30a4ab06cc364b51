-- Generated from server/errors.py by `make gen`. Do not edit. The errors of the edge itself, by HTTP status.
return {
  ["400"] = { code = "INVALID_INPUT", message = "malformed request", grpc_status = "3" },
  ["404"] = { code = "NOT_FOUND", message = "not found", grpc_status = "5" },
  ["405"] = { code = "METHOD_NOT_ALLOWED", message = "method not allowed", grpc_status = "3" },
  ["408"] = { code = "REQUEST_TIMEOUT", message = "request not received in time", grpc_status = "4" },
  ["413"] = { code = "PAYLOAD_TOO_LARGE", message = "request body too large", grpc_status = "3" },
  ["415"] = { code = "UNSUPPORTED_MEDIA_TYPE", message = "content-type must be application/json", grpc_status = "3" },
  ["426"] = { code = "UPGRADE_REQUIRED", message = "gRPC needs HTTP/2, REST needs HTTP/1.1", grpc_status = "12" },
  ["429"] = { code = "RATE_LIMITED", message = "rate limited", grpc_status = "8", retry_after = "1" },
  ["431"] = { code = "HEADERS_TOO_LARGE", message = "request headers too large", grpc_status = "3" },
  ["500"] = { code = "INTERNAL", message = "internal error", grpc_status = "13" },
  ["503"] = { code = "UNAVAILABLE", message = "service unavailable", grpc_status = "14", retry_after = "1" },
  ["504"] = { code = "TIMEOUT", message = "request timed out", grpc_status = "4" },
}
