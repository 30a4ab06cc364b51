-- Generated from protos/ by `make gen`. Do not edit. The REST routes, fixed paths first: a path pattern, and
-- for each method the shape of its JSON body or of its query.
return {
  { path = "^/v1/phone%-numbers/orders$", allow = "POST",
    POST = { body = { numbers = { "string" }, inbound_url = "string", status_url = "string", campaign_id = "string", label = "string" } },
  },
}
