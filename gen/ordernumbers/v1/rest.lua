-- Generated from protos/ by `make gen`; never edited. The REST routes, fixed paths first: a path pattern,
-- and for each method the shape of the JSON body or of the query it takes.
return {
  { path = "^/v1/phone%-numbers/orders$", allow = "POST",
    POST = { body = { numbers = { "string" }, inbound_url = "string", status_url = "string", campaign_id = "string", label = "string" } },
  },
}
