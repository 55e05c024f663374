#!lua
-- Claim tasks: first entries whose lease expired or that were given back, then new ones.
-- ARGV: consumer, lease in ms, count.
-- Returns {claims, unreadable entries, last delivered ID}; a claim is {entry, deliveries, failures, task,
-- incarnation, number, prompt}. Also acknowledges entries of closed sendings, and entries without readable
-- fields.
local consumer = payload(1, 'consumer')
local lease_ms, count = digits(2, 'lease'), tonumber(digits(3, 'count'))
check_types()
ensure_group()
local claims, unreadable, acknowledged = {}, {}, false

local function take(entry, deliveries)
  local id, flat, fields = entry[1], entry[2], {}
  for i = 1, #flat, 2 do
    fields[flat[i]] = flat[i + 1]
  end
  local task, incarnation, number = fields['task'], fields['incarnation'], fields['number']
  local failures = nil
  if task and incarnation and number and fields['prompt'] then
    failures = open_failures(task, incarnation, number, id)
  else
    unreadable[#unreadable + 1] = id
  end
  if failures then
    claims[#claims + 1] = { id, deliveries, failures, task, incarnation, number, fields['prompt'] }
  else
    acknowledge(id)
    acknowledged = true
  end
end

local from = '-'
while #claims < count do
  local expired = redis.call('XPENDING', PROMPTS, GROUP, 'IDLE', lease_ms, from, '+', count - #claims)
  if #expired == 0 then
    break
  end
  for _, pending in ipairs(expired) do
    -- If the entry was deleted from the stream, XCLAIM returns nothing and removes it from the pending ones.
    local entry = redis.call('XCLAIM', PROMPTS, GROUP, consumer, lease_ms, pending[1])[1]
    if entry then
      take(entry, pending[4] + 1)
    end
    from = '(' .. pending[1]
  end
end
while #claims < count do
  local read = redis.call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', count - #claims, 'STREAMS', PROMPTS, '>')
  if not read then
    break
  end
  for _, entry in ipairs(read[1][2]) do
    take(entry, 1)
  end
end
if acknowledged then
  trim()
end
return { claims, unreadable, last_delivered() }
