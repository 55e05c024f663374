#!lua flags=allow-oom
-- Delete a consumer that has nothing pending, and consumers of workers that ended long ago.
-- ARGV: consumer, idle ms after which the consumer of another worker is deleted.
local consumer, gone_ms = payload(1, 'consumer'), tonumber(digits(2, 'gone'))
check_types()
ensure_group()
local deleted = 0
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', PROMPTS, GROUP)) do
  local fields = {}
  for i = 1, #flat, 2 do
    fields[flat[i]] = flat[i + 1]
  end
  local leaves = fields['name'] == consumer or (fields['name'] ~= RETURNED and fields['idle'] > gone_ms)
  if leaves and fields['pending'] == 0 then
    redis.call('XGROUP', 'DELCONSUMER', PROMPTS, GROUP, fields['name'])
    deleted = deleted + 1
  end
end
return deleted
