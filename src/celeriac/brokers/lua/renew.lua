-- Starts leases anew.
--
-- ARGV  4 seconds of the lease   5... tags
-- Returns the tags that were void.

need_no_memory()
local ends = text_of(time() + tonumber(ARGV[4]))
local void = {}
for first = 5, #ARGV, 1000 do
  local held = {}
  for i = first, math.min(first + 999, #ARGV) do
    if call('HEXISTS', UNACKED, ARGV[i]) == 1 then
      table.insert(held, ends)
      table.insert(held, ARGV[i])
    else
      table.insert(void, ARGV[i])
    end
  end
  if #held > 0 then
    call('ZADD', INDEX, 'XX', unpack(held)) -- what no stock worker can decode is not there
    call('ZADD', LEASES, 'XX', unpack(held))
  end
end
for _, tag in ipairs(void) do
  call('ZREM', LEASES, tag) -- of a message that a stock worker has restored
end
return void
