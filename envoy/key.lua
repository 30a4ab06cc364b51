-- The script of the filter before the rate limit. Each key gets one spelling. Otherwise "bearer  x" would have a rate
-- limit of its own beside that of "Bearer x". For most orders, envoy.yaml disables this filter.
function envoy_on_request(h)
  local headers = h:headers()
  local scheme, key = (headers:get("authorization") or ""):match("^(%a+) +([^ ,]+)$")
  if scheme and scheme:lower() == "bearer" then headers:replace("authorization", "Bearer " .. key) end
end
