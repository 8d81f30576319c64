-- Starts leases anew.
--
-- ARGV  4 seconds of the lease   5... tags
-- Returns the tags that were void.

local now, lease = time(), tonumber(ARGV[4])
local void = {}
for first = 5, #ARGV, 1000 do
  local begun, leased = {}, {}
  for i = first, math.min(first + 999, #ARGV) do
    if call('HEXISTS', UNACKED, ARGV[i]) == 1 then
      table.insert(begun, now)
      table.insert(begun, ARGV[i])
      table.insert(leased, now + lease)
      table.insert(leased, ARGV[i])
    else
      table.insert(void, ARGV[i])
    end
  end
  if #begun > 0 then
    call('ZADD', INDEX, 'XX', unpack(begun))
    call('ZADD', LEASES, 'XX', unpack(leased))
  end
end
for _, tag in ipairs(void) do
  call('ZREM', LEASES, tag) -- of a message that a stock worker has restored
end
return void
