-- Free an idempotency key, ARGV[2], if it still is this task's, ARGV[3].

local held = call('GET', KEY .. ARGV[2])
if held and unpacked(held)[1] == ARGV[3] then
  call('DEL', KEY .. ARGV[2])
end
